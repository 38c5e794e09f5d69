//! The signals that ask a program to end.

#[cfg(unix)]
pub use unix::on_end;

/// Has `told` called, in a thread of its own, whenever the program is asked to end.
#[cfg(not(unix))]
pub fn on_end(told: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    Ok(ctrlc::set_handler(told)?)
}

#[cfg(unix)]
mod unix {
    use std::fs;
    use std::thread;

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    /// Has `told` called, in a thread of its own, whenever the program is asked to end; not by signals
    /// that it was started to ignore, as nohup has it ignore the end of a terminal.
    pub fn on_end(mut told: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
        let ignored = fs::read_to_string("/proc/self/status").map_or(0, |status| ignored(&status));
        let heard = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !has(ignored, *signal));
        let mut signals = Signals::new(heard)?;
        let thread = thread::Builder::new().name("signals".into());
        thread.spawn(move || signals.forever().for_each(|_| told()))?;
        Ok(())
    }

    /// The set of signals that a process ignores, from what Linux says of it; elsewhere nothing is known.
    fn ignored(status: &str) -> u64 {
        let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
    }

    fn has(set: u64, signal: i32) -> bool {
        set >> (signal - 1) & 1 == 1
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_nohup_has_ignored_is_found() {
            let set = ignored("SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t2\n");
            assert!(has(set, SIGHUP) && !has(set, SIGINT) && !has(set, SIGTERM));
            assert_eq!(ignored("Name:\tblockcascade\n"), 0);
        }
    }
}
