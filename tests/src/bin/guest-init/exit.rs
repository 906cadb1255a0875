//! The end of the machine.

use kiovec_tests::report::EXIT_PORT;

/// Ends the machine through QEMU's isa-debug-exit; QEMU's exit code tells `value`.
pub fn machine(value: u8) -> ! {
    // SAFETY: ioperm only changes which ports this thread may use. The port belongs to a device that does nothing
    // but end the machine; the access touches no memory.
    unsafe {
        if libc::ioperm(EXIT_PORT.into(), 4, 1) == 0 {
            std::arch::asm!("out dx, al", in("dx") EXIT_PORT, in("al") value, options(nomem, nostack));
        }
    }
    // Still here: the kernel panics when its first process ends, and QEMU stops without the exit code.
    println!("guest-init: cannot write to port {EXIT_PORT:#x}: {}", std::io::Error::last_os_error());
    std::process::exit(1);
}
