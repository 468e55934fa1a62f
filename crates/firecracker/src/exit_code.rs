//! What Firecracker means by its exit codes.

/// Firecracker's own meaning of an exit code; `None` for codes that it does not use.
///
/// A signal that it handles (SIGBUS, SIGSYS, …) ends it with such a code; a panic aborts it, so it then has
/// no exit code but the signal SIGABRT. Seen with 1.12.1: a config file that cannot be read is a panic.
///
/// SIGPIPE is the odd one. Its handler logs, and when the log goes to the pipe whose reader is gone, 1.12.1
/// hangs in it for ever; on the API's thread the handler breaks the seccomp filter (SIGSYS). A VMM spawned
/// with SIGPIPE blocked gets an ordinary error instead and lives on.
pub fn meaning(code: i32) -> Option<&'static str> {
    let meaning = match code {
        0 => "ended as asked, or the guest shut down",
        1 => "a generic error; its last lines say which",
        2 => "an error that Firecracker did not expect; its last lines say which",
        148 => "a system call that its seccomp filter forbids (SIGSYS)",
        149 => "SIGBUS: memory it had mapped is gone, as when a backing file was truncated",
        150 => "SIGSEGV: an invalid memory access",
        151 => "SIGXFSZ: a file grew over the limit of file sizes",
        152 => "the configuration is invalid; its last lines say why",
        153 => "the command line is invalid; its last lines say why",
        154 => "SIGXCPU: the limit of processor time was reached",
        155 => "SIGPIPE: the reader of a pipe or the peer of a socket went away",
        156 => "SIGHUP: its terminal was closed",
        157 => "SIGILL: an invalid instruction",
        _ => return None,
    };
    Some(meaning)
}

#[cfg(test)]
mod tests {
    use super::meaning;

    #[test]
    fn known_codes_have_a_meaning_and_others_none() {
        assert!(meaning(152).unwrap().contains("configuration"));
        assert!(meaning(153).unwrap().contains("command line"));
        let known: Vec<_> = (-1..=256).filter(|code| meaning(*code).is_some()).collect();
        assert_eq!(known, [0, 1, 2, 148, 149, 150, 151, 152, 153, 154, 155, 156, 157]);
    }
}
