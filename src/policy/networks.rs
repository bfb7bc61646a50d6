//! Sets of networks: given by a policy, or read from a file and read again when that changes.
//!
//! Owns the look-up (the longest prefix decides), the form of a file, and the files that the policies of one set have named: each is
//! read once, for all machines. Never keeps a file that cannot be read whole: what was read before stays in use.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use tokio_util::sync::CancellationToken;

use crate::stamp::{Seen, Stamp};
use crate::telemetry::Metrics;

/// Bytes of one file, and networks in it: all that the registries give out are half of that.
const MAX_FILE: u64 = 32 << 20;
const MAX_NETWORKS: usize = 1_000_000;
/// Files of all policies.
const MAX_FILES: usize = 100;
/// Bytes of a wrong line that are told.
const TOLD: usize = 64;
/// A file that is only for comments is one that somebody meant to be so.
const EMPTY: &str = "is empty: cut off? A list without networks has a line with a # at least";

/// Networks that are in or out; the one with the longest prefix decides.
#[derive(Default, Clone)]
pub(super) struct Table {
    v4: PrefixMap<Ipv4Net, bool>,
    v6: PrefixMap<Ipv6Net, bool>,
}

impl Table {
    /// `10.0.0.0/8`, an address, or either with a `!` before it: not that one. Of the same network the later one counts. The error
    /// follows what is wrong.
    pub(super) fn add(&mut self, text: &str) -> Result<(), &'static str> {
        let (text, within) = match text.strip_prefix('!') {
            Some(rest) => (rest.trim_start(), false),
            None => (text, true),
        };
        let network = match text.parse::<IpNet>() {
            Ok(network) => network,
            Err(_) => IpNet::from(text.parse::<IpAddr>().map_err(|_| "is no network, such as 192.0.2.0/24")?),
        };
        match folded(network) {
            IpNet::V4(network) => self.v4.insert(network.trunc(), within),
            IpNet::V6(network) => self.v6.insert(network.trunc(), within),
        };
        Ok(())
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        let found = match address.to_canonical() {
            IpAddr::V4(address) => self.v4.get_lpm(&Ipv4Net::from(address)).map(|(_, within)| *within),
            IpAddr::V6(address) => self.v6.get_lpm(&Ipv6Net::from(address)).map(|(_, within)| *within),
        };
        found.unwrap_or(false)
    }

    /// Networks, excluded ones included.
    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}

/// A network of IPv4-mapped addresses as the IPv4 network that it is: the addresses of reports are folded, too.
fn folded(network: IpNet) -> IpNet {
    if let IpNet::V6(v6) = network
        && let (Some(address), Some(length)) = (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96))
        && let Ok(v4) = Ipv4Net::new(address, length)
    {
        return IpNet::V4(v4);
    }
    network
}

/// A file of networks, in use.
pub(super) struct File {
    path: PathBuf,
    table: ArcSwap<Table>,
    /// What the file looked like when it was last read, well or not: a broken file is told of once, not at each look.
    seen: Mutex<Seen>,
}

impl File {
    fn open(path: &Path) -> Result<Self, String> {
        // Taken before the file is read: a change while it is read shows at the next look.
        let seen = Stamp::of(path);
        let table = ArcSwap::from_pointee(read(path).map_err(Wrong::text)?);
        Ok(Self { path: path.to_owned(), table, seen: Mutex::new(Seen::read(seen)) })
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.table.load().has(address)
    }

    pub(super) fn len(&self) -> usize {
        self.table.load().len()
    }

    /// Reads it again where it has changed. `None`: it has not.
    fn renew(&self) -> Option<Result<usize, String>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Stamp::of(&self.path);
        if !seen.is_due(now) {
            return None;
        }
        let table = match read(&self.path) {
            Err(Wrong::Unreadable(why)) => return seen.note_unreadable(&why).then_some(Err(why)),
            other => other.map_err(Wrong::text),
        };
        *seen = Seen::read(now);
        Some(table.map(|table| {
            let count = table.len();
            self.table.store(Arc::new(table));
            count
        }))
    }
}

/// The files that the policies of one set have named.
#[derive(Default)]
pub struct Networks {
    files: Mutex<BTreeMap<PathBuf, Arc<File>>>,
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(files.keys()).finish()
    }
}

impl Networks {
    /// The file, read by the first who names it. The error begins with the path, and the line where one is wrong.
    pub(super) fn file(&self, path: &Path) -> Result<Arc<File>, String> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(path) {
            return Ok(Arc::clone(file));
        }
        if files.len() >= MAX_FILES {
            return Err(format!("{}: is one more than the {MAX_FILES} files that policies may have", path.display()));
        }
        // In a thread of its own: a million networks take longer than the CPU time in which a policy must have loaded.
        let opened = std::thread::scope(|scope| scope.spawn(|| File::open(path)).join());
        let file = Arc::new(opened.map_err(|_| format!("{}: cannot be read", path.display()))??);
        files.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    /// Looks at every file and reads again what has changed. Gives each file that was, with how many networks it has now, or why the
    /// ones read before stay in use. Blocks while it reads.
    fn renew(&self) -> Vec<(PathBuf, Result<usize, String>)> {
        let files: Vec<_> = self.files.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        files.into_iter().filter_map(|file| Some((file.path.clone(), file.renew()?))).collect()
    }
}

/// Looks after the files of the policies that are in use, every so often, until stopped.
pub async fn watch(
    current: Arc<ArcSwap<Networks>>,
    check_every: Duration,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(check_every) => {}
        }
        let networks = current.load_full();
        let renewed = tokio::task::spawn_blocking(move || networks.renew()).await.unwrap_or_default();
        for (path, outcome) in renewed {
            let file = path.display();
            let label = if outcome.is_ok() { "read" } else { "refused" };
            metrics.policy_files.with_label_values(&[label]).inc();
            match outcome {
                Ok(networks) => tracing::info!(%file, networks, "a policy's file of networks was read again"),
                Err(error) => tracing::error!(
                    error,
                    "a policy's changed file of networks was not taken; what was read before stays in use"
                ),
            }
        }
    }
}

/// Why a file was not taken.
enum Wrong {
    /// It could not be read, which may be otherwise at the next look.
    Unreadable(String),
    /// It is not what it should be.
    Form(String),
}

impl Wrong {
    fn text(self) -> String {
        match self {
            Self::Unreadable(text) | Self::Form(text) => text,
        }
    }
}

/// One network a line; what follows `#` or `;` is a comment, as in the lists that are handed about.
fn read(path: &Path) -> Result<Table, Wrong> {
    let shown = path.display();
    let mut bytes = Vec::new();
    let unreadable = |error: std::io::Error| Wrong::Unreadable(format!("{shown}: {error}"));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    if !file.metadata().is_ok_and(|about| about.is_file()) {
        // A pipe would hold up whoever reads it.
        return Err(Wrong::Form(format!("{shown}: is no file")));
    }
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Wrong::Form(format!("{shown}: has more than {MAX_FILE} bytes")));
    }
    if bytes.is_empty() {
        return Err(Wrong::Form(format!("{shown}: {EMPTY}")));
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut table = Table::default();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let network = line.split(['#', ';']).next().unwrap_or_default().trim();
        if network.is_empty() {
            continue;
        }
        let told = &network[..network.floor_char_boundary(TOLD)];
        table.add(network).map_err(|why| Wrong::Form(format!("{shown}:{}: {told:?} {why}", number + 1)))?;
        if table.len() > MAX_NETWORKS {
            return Err(Wrong::Form(format!("{shown}:{}: has more than {MAX_NETWORKS} networks", number + 1)));
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(networks: &[&str]) -> Table {
        let mut table = Table::default();
        networks.iter().for_each(|network| table.add(network).unwrap());
        table
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn longest_prefix_decides_whatever_the_order() {
        for networks in [
            ["10.0.0.0/8", "!10.1.0.0/16", "10.1.2.0/24", "2001:db8::/32", "!2001:db8:1::/48"],
            ["!2001:db8:1::/48", "10.1.2.0/24", "!10.1.0.0/16", "10.0.0.0/8", "2001:db8::/32"],
        ] {
            let table = table(&networks);
            for (inside, expected) in [
                ("10.0.0.1", true),
                ("10.1.0.1", false),
                ("10.1.2.3", true),
                ("11.0.0.1", false),
                ("::ffff:10.0.0.1", true),
                ("2001:db8::1", true),
                ("2001:db8:1::1", false),
                ("::1", false),
            ] {
                assert_eq!(table.has(address(inside)), expected, "{inside}");
            }
            assert_eq!(table.len(), 5);
        }
    }

    #[test]
    fn ways_to_write_a_network() {
        let table = table(&[
            "192.0.2.7",
            "198.51.100.77/24",
            "! 198.51.100.1",
            "::ffff:203.0.113.0/120",
            "0.0.0.0/0",
            "!0.0.0.0/0",
        ]);
        assert_eq!(table.len(), 5, "the same network twice is one, and the later counts");
        for (inside, expected) in [
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("198.51.100.2", true),
            ("198.51.100.1", false),
            ("203.0.113.9", true),
        ] {
            assert_eq!(table.has(address(inside)), expected, "{inside}");
        }
        for wrong in ["", "!", "10.0.0/8", "10.0.0.0/33", "example.com", "10.0.0.0/8 x", "!!10.0.0.0/8"] {
            assert!(Table::default().add(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        /// Against the same by looking at every network.
        #[test]
        fn set_is_what_all_its_networks_say(
            networks in prop::collection::vec((any::<u32>(), 0u8..=32, any::<bool>()), 0..40),
            asked in prop::collection::vec(any::<u32>(), 1..20),
        ) {
            let networks: Vec<(Ipv4Net, bool)> = networks
                .into_iter()
                // Few bits, so that networks lie in one another.
                .map(|(bits, length, within)| (Ipv4Net::new((bits & 0xC000_0003).into(), length).unwrap().trunc(), within))
                .collect();
            let mut table = Table::default();
            for (network, within) in &networks {
                table.add(&format!("{}{network}", if *within { "" } else { "!" })).unwrap();
            }
            for bits in asked.into_iter().chain([0, 1, 2, 3, u32::MAX]) {
                let address = std::net::Ipv4Addr::from(bits & 0xC000_0003);
                let longest = networks.iter().filter(|(network, _)| network.contains(&address)).map(|(n, _)| n.prefix_len()).max();
                let last = networks.iter().rev().find(|(n, _)| n.contains(&address) && Some(n.prefix_len()) == longest);
                prop_assert_eq!(table.has(address.into()), last.is_some_and(|(_, within)| *within));
            }
        }
    }

    #[test]
    fn file_is_read_once_and_again_when_it_changes_and_a_broken_one_leaves_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vpn.txt");
        std::fs::write(&path, "\u{feff}# a list\r\n192.0.2.0/24 ; SBL1\r\n\r\n!192.0.2.9 # ours\r\n").unwrap();
        let networks = Networks::default();
        let file = networks.file(&path).unwrap();
        assert!(Arc::ptr_eq(&file, &networks.file(&path).unwrap()));
        assert_eq!((file.len(), file.has(address("192.0.2.8")), file.has(address("192.0.2.9"))), (2, true, false));
        assert!(networks.renew().is_empty(), "it has not changed");

        std::fs::write(&path, "192.0.2.0/24\n198.51.100/24\n").unwrap();
        let told = networks.renew();
        let error = told[0].1.clone().unwrap_err();
        assert!(error.ends_with("vpn.txt:2: \"198.51.100/24\" is no network, such as 192.0.2.0/24"), "{error}");
        assert!(networks.renew().is_empty(), "a broken file is told of once");
        assert_eq!(file.len(), 2);
        std::fs::remove_file(&path).unwrap();
        assert!(networks.renew()[0].1.clone().unwrap_err().contains("No such file"));

        std::fs::write(&path, "203.0.113.0/24\n").unwrap();
        assert_eq!(networks.renew()[0].1, Ok(1));
        assert!(file.has(address("203.0.113.1")) && !file.has(address("192.0.2.8")), "for who has it already, too");
    }

    #[test]
    fn each_way_a_file_can_be_wrong_has_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let told = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Networks::default().file(&path).err()
        };
        assert!(told(b"").unwrap().ends_with(EMPTY));
        assert_eq!(told(b"# none yet\n"), None);
        assert!(
            told(b"<html>please log in</html>").unwrap().contains("x:1: \"<html>please log in</html>\" is no network")
        );
        assert!(told(b"1.2.3.4\n\xff\xfe").unwrap().contains("x:2: "));
        assert!(told(&vec![b' '; MAX_FILE as usize + 1]).unwrap().contains("has more than"));
        assert!(Networks::default().file(folder.path()).err().unwrap().ends_with("is no file"));
        assert!(Networks::default().file(&path.join("none")).is_err());
    }
}
