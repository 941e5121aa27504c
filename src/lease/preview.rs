//! A start foreseen: the same facts, the same decision and the same steps as of a real one, without the lock, and
//! without changing anything. What others do in the meantime may make it wrong, so nothing but a report may depend on
//! it.

use crate::Leases;
use crate::gather::Facts;
use crate::life::Life;
use crate::view::View;
use host::pci::bind::Libvirt;
use host::pci::sysfs::PciView;
use model::device::PciDevice;
use model::domain::Assigned;
use model::error::Result;
use model::lease::{HeldDevice, LeaseState, Role};
use model::plan::{Answer, OwnerState, Refusal, Scene, plan};
use model::step::Step;

/// What a start would do.
#[derive(Debug, Default)]
pub struct Preview {
    /// The guests that are gone and whose devices it would first reattach; the guest of the start itself may be one.
    pub left_by: Vec<String>,
    /// What it would take then, in this order. `None`: that can be told only when those devices are back, as VFs are
    /// among them.
    pub taken: Option<Vec<Acquired>>,
}

/// What a start would do with one device.
#[derive(Debug)]
pub struct Acquired {
    /// The device as it would be found.
    pub device: PciDevice,
    /// What the guest's lease would tell of it.
    pub held: HeldDevice,
    /// What would be done to it, in this order.
    pub steps: Vec<Step>,
}

impl Leases<'_> {
    /// What libvirt's `prepare` would do for a guest that does not run and has these devices. One that is only thought
    /// of has no name.
    ///
    /// # Errors
    /// Why it would be refused, before [`explain_refusal`](Self::explain_refusal).
    pub fn preview(&self, view: &View, guest: Option<&str>, assigned: &[Assigned]) -> Result<Preview, Refusal> {
        let own = guest.map_or(Ok(None), |guest| view.lease(guest))?;
        let is_left = own.is_some_and(|lease| lease.state != LeaseState::Reserved);
        let mut left_by: Vec<String> = guest.filter(|_| is_left).map(str::to_owned).into_iter().collect();
        let mut facts = Facts::new(self, guest, assigned, view)?;
        loop {
            let mut scene = facts.scene(view)?;
            for gone in &left_by {
                if !self.suppose_reattached(view, &mut scene, gone, Some(gone.as_str()) == guest)? {
                    return Ok(Preview { left_by, taken: None });
                }
            }
            match plan(&scene)? {
                Answer::Detach(held) => {
                    let taken = Some(self.steps(guest, held, &scene));
                    return Ok(Preview { left_by, taken });
                }
                Answer::FindUses(addresses) => facts.find_uses(addresses, view)?,
                Answer::Recover(gone) if left_by.contains(&gone) => return Ok(Preview { left_by, taken: None }),
                Answer::Recover(gone) => left_by.push(gone),
            }
        }
    }

    fn steps(&self, guest: Option<&str>, held: Vec<HeldDevice>, scene: &Scene) -> Vec<Acquired> {
        let binder = self.binder(guest.unwrap_or_default());
        let mut is_loaded = false;
        let taken = held.into_iter().filter_map(|held| {
            let device = scene.functions.get(&held.address)?.device.clone();
            let mut steps = binder.steps(&device, held.role);
            steps.retain(|step| *step != Step::LoadVfio || !is_loaded);
            is_loaded |= steps.contains(&Step::LoadVfio);
            Some(Acquired { device, held, steps })
        });
        taken.collect()
    }

    /// Makes a scene what it is when a gone guest has reattached what it can: all, if libvirt has done its part.
    /// Whether that is known, as the VFs of a PF are yet to be made.
    fn suppose_reattached(&self, view: &View, scene: &mut Scene, gone: &str, is_over: bool) -> Result<bool> {
        let Some(lease) = view.lease(gone)? else { return Ok(true) };
        let is_over = is_over || lease.libvirt(self.host) == Libvirt::Done;
        for function in scene.functions.values_mut() {
            let Some(owner) = function.owner.as_mut().filter(|owner| owner.guest == gone) else { continue };
            let Some(held) = owner.held.take() else { continue };
            if held.role == Role::Managed && !is_over && function.device.driver != held.driver {
                owner.state = OwnerState::Stopping;
                continue;
            }
            function.owner = None;
            let device = &mut function.device;
            // Of a device that another guest has, not all was read.
            let now = view.pci.device(device.address)?;
            device.driver_override = now.and_then(|now| now.driver_override).map(|_| held.driver_override);
            device.on_vfio = held.driver.as_ref().is_some_and(|driver| driver.contains("vfio"));
            device.driver = held.driver;
            device.in_vfio_use = false;
        }
        Ok(lease.devices.iter().all(|held| held.role != Role::Vf))
    }
}
