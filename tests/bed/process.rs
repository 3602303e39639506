//! What the kernel says of a process (`proc(5)`).

/// A number in its `status`, such as that of `VmRSS:`, in KiB.
#[track_caller]
pub fn status(process: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process runs");
    let found = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel tells it");
    found.split_whitespace().next().and_then(|word| word.parse().ok()).expect("it is a number")
}
