//! A start foreseen: the same facts, the same decision and the same steps as of a real one, without the lock, and without
//! changing anything. What others do meanwhile may make it wrong; so it is for the admin's eyes only.

use super::Events;
use super::choose::missing_devices;
use super::facts::Facts;
use crate::address::PciAddress;
use crate::apply::Step;
use crate::domain::{Assigned, Device as Element, Domain};
use crate::error::Result;
use crate::lease::{Held, State};
use crate::plan::{Answer, Refusal, plan};
use crate::sysfs::Device;

/// What a start would do.
#[derive(Debug)]
pub enum Forecast {
    /// A guest that is gone, perhaps the same one, has left devices of these. They would be given back first, and only then
    /// would be decided.
    GiveBack(String),
    /// It would take these, in this order.
    Take(Vec<Taken>),
}

/// What a start would do with one device.
#[derive(Debug)]
pub struct Taken {
    /// The device as it is now.
    pub device: Device,
    /// What the guest's lease would tell of it.
    pub held: Held,
    /// What would be done to it, in this order.
    pub steps: Vec<Step>,
}

impl Events<'_> {
    /// What libvirt's `prepare` would do for a guest that does not run.
    ///
    /// # Errors
    /// The start would be refused: the reason, word for word.
    pub fn foresee(&self, guest: &str, domain: &Domain) -> Result<Forecast> {
        let assigned = domain.assigned();
        missing_devices(domain)?;
        if self.is_none_of_ours(guest, &assigned) {
            return Ok(Forecast::Take(Vec::new()));
        }
        if self.store.look(guest)?.is_some_and(|lease| lease.state != State::Reserved) {
            return Ok(Forecast::GiveBack(guest.to_owned()));
        }
        self.foresee_devices(guest, &assigned).map_err(|refusal| self.words(guest, &assigned, refusal).0)
    }

    /// What a start with these devices would do. Nobody has a name for a guest that is only thought of: none.
    ///
    /// # Errors
    /// Why it would be refused, before that is put into words for pools.
    pub fn foresee_devices(&self, guest: &str, assigned: &[Assigned]) -> Result<Forecast, Refusal> {
        let held = match self.foresee_answer(guest, assigned)? {
            Answer::Take(held) => held,
            Answer::Recover(gone) => return Ok(Forecast::GiveBack(gone)),
            Answer::FindNeed(_) => unreachable!("all needs are found out"),
        };
        let mover = self.mover(guest);
        let mut taken: Vec<Taken> = Vec::new();
        for held in held {
            let (device, mut steps) = mover.plan(&held)?;
            let is_loaded = taken.iter().any(|taken| taken.steps.contains(&Step::LoadVfio));
            steps.retain(|step| *step != Step::LoadVfio || !is_loaded);
            taken.push(Taken { device, held, steps });
        }
        Ok(Forecast::Take(taken))
    }

    fn foresee_answer(&self, guest: &str, assigned: &[Assigned]) -> Result<Answer, Refusal> {
        let mut facts = Facts::new(self, guest, assigned)?;
        loop {
            match plan(&facts.scene(&|guest| self.store.look(guest))?)? {
                Answer::FindNeed(address) => facts.find_need(address)?,
                answer => return Ok(answer),
            }
        }
    }

    /// The devices that `vfpool start` and the filters would choose for a guest's requests now.
    ///
    /// # Errors
    /// Why they would not start it.
    pub fn foresee_choice<'d>(&self, guest: &str, domain: &'d Domain) -> Result<Vec<(&'d Element, PciAddress)>> {
        missing_devices(domain)?;
        self.choose_by(guest, domain, |assigned| self.foresee_answer(guest, assigned).map(drop))
    }
}
