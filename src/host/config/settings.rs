//! Reads the admin's settings, `/etc/vfpool/host.xml`.

use crate::paths::Host;
use model::error::{Error, Result};
use model::settings::Settings;
use std::{fs, io};

/// The host's settings. Without a file, each has its default; also if the file cannot be used, and then the reason is
/// beside them. The defaults refuse more and leave more alone, not less.
pub fn load(host: &Host) -> (Settings, Option<Error>) {
    read(host).map_or_else(|error| (Settings::default(), Some(error)), |settings| (settings, None))
}

fn read(host: &Host) -> Result<Settings> {
    let path = host.settings();
    match fs::read_to_string(&path) {
        Ok(text) => Settings::parse(&text).map_err(|cause| {
            Error::new(format!("Cannot use {}: {cause}; using default settings until it is fixed", path.display()))
        }),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Settings::default()),
        Err(cause) => Err(Error::io("read", &path, &cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn load(text: &str) -> Result<Settings> {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path());
        fs::create_dir_all(host.settings().parent().unwrap()).unwrap();
        fs::write(host.settings(), text).unwrap();
        super::read(&host)
    }

    #[test]
    fn each_setting_is_read() {
        let settings = load(
            "<host>\n<allow address='02:00.1'/><devices max='64'/><allow address='pci_0000_03_00_0' id='8086:10D3'/>\
             <deadline seconds='2'/><hook seconds='3'/></host>",
        );
        let settings = settings.unwrap();
        let allows = |address: &str, id: &str| settings.allows(address.parse().unwrap(), id.parse().unwrap());
        assert!(allows("0000:02:00.1", "8086:10d3") && allows("0000:02:00.1", "1b36:0010"));
        assert!(allows("0000:03:00.0", "8086:10d3"));
        assert!(!allows("0000:03:00.0", "1b36:0010"), "another device has come to that address");
        assert!(!allows("0000:02:00.0", "8086:10d3"));
        assert_eq!(settings.most_devices(), 64);
        assert_eq!((settings.deadline(), settings.hook_deadline()), (Duration::from_secs(2), Duration::from_secs(3)));
    }

    #[test]
    fn without_a_file_the_guide_holds() {
        let (settings, error) = super::load(&Host::new("/nonexistent"));
        assert_eq!(error, None);
        assert_eq!((settings.most_devices(), settings.deadline()), (32, Duration::from_secs(30)));
        assert_eq!(settings.hook_deadline(), Duration::from_secs(300));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            ("<host><alow address='02:00.1'/></host>", "alow"),
            ("<host><allow address='2:0.1'/></host>", "write it as 0000:02:00.1"),
            ("<host><allow address='02:00.1' id='8086'/></host>", "8086"),
            ("<host><devices max='many'/></host>", "many"),
            ("<host><deadline seconds='0'/></host>", "nonzero"),
            ("<host><devices", "host.xml"),
        ] {
            let error = load(text).expect_err(text).to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
