//! Who gives the service its memory. How it gives it back is set at build, in `.cargo/config.toml`.

use mimalloc::MiMalloc;

/// Requests allocate on one thread what another one frees: this allocator is made for that.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{fs, hint::black_box};

    const MEBIBYTE: usize = 1 << 20;

    /// What the process takes up, in MiB.
    fn resident() -> u64 {
        let status = fs::read_to_string("/proc/self/status").expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident size");
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kibibytes / 1_024
    }

    fn let_go_of_large_blocks(count: usize) {
        for _ in 0..count {
            black_box(vec![0_u8; black_box(MEBIBYTE)]);
        }
    }

    /// An address of its own for each block would leave 50 MiB of tables of addresses behind here, and more with each hour
    /// of large batches.
    #[test]
    fn large_blocks_leave_nothing_behind() {
        let_go_of_large_blocks(1_000);
        let before = resident();
        let_go_of_large_blocks(50_000);
        let after = resident();
        assert!(after < before + 10, "{before} MiB before, {after} after");
    }
}
