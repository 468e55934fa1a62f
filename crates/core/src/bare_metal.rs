//! Tiny guests without an operating system, as pure bytes: what a trial of the host or a test boots
//! where a Linux kernel would be too slow, too big or (on some paravirtual KVMs) impossible.
//!
//! [`Guest::elf`] makes a static x86_64 ELF of a few hundred bytes. Firecracker loads it like a
//! `vmlinux` and enters it in 64-bit mode, with flat segments (code selector `0x08`) and the first
//! GiB of memory mapped to itself. There is no stack and no interrupt table; a guest that needs them
//! brings its own.
//!
//! What the guests touch of the machine:
//!
//! | port | device | use |
//! | --- | --- | --- |
//! | `0x3f8` | serial port, data | guest console: out is Firecracker's stdout, in is its stdin |
//! | `0x3f9`, `0x3fd` | serial port, interrupt enable and line status | input |
//! | `0x60`, `0x64` | i8042 keyboard controller | Ctrl+Alt+Del comes in; writing `0xfe` resets, which ends Firecracker with exit status 0 |
//! | `0x20`, `0x21` | interrupt controller (PIC) | waiting for input in `hlt`, so that an idle guest burns no CPU |
//!
//! One vCPU, no initrd, any memory size of [`MIN_MEM_MIB`] or more; boot arguments are not looked at.

/// Where Firecracker loads the image. It refuses entry points under 1 MiB.
const ORIGIN: u32 = 0x10_1000;
/// ELF header (64 bytes) and one program header (56), rounded up.
const HEADERS: usize = 0x80;
/// Where the interrupt descriptor table lies in the image, when there is one: behind the code.
const IDT: usize = 0x180;
/// 48 gates of 16 bytes: 32 for the CPU's exceptions, 16 for the interrupt controller's lines.
const IDT_LEN: usize = 48 * 16;
/// Limit and address of the table, as `lidt` wants them.
const IDTR: usize = IDT + IDT_LEN;
/// Top of the stack on which interrupts push their frame: low memory that Firecracker leaves alone
/// once the guest runs.
const STACK_TOP: u32 = 0x8000;

/// The interrupt vector of the interrupt controller's line 0.
const IRQ_BASE: u8 = 0x20;
/// The i8042's interrupt line.
const KEYBOARD_IRQ: u8 = 1;
/// The first serial port's interrupt line.
const SERIAL_IRQ: u8 = 4;

/// The least `mem_size_mib` these guests boot with: the image lies just above 1 MiB.
pub const MIN_MEM_MIB: u64 = 2;

/// The byte that a guest writes as soon as it can take its input: whoever has read it may type or
/// send Ctrl+Alt+Del without losing anything.
pub const READY_BYTE: u8 = b'S';

/// The input byte that makes [`Guest::Echo`] reset: ASCII end of transmission, Ctrl+D on a terminal.
pub const END_OF_TRANSMISSION: u8 = 0x04;

/// What the tiny guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Guest<'a> {
    /// Writes [`READY_BYTE`] and resets: Firecracker exits by itself, with status 0.
    ByteThenReset,
    /// Writes [`READY_BYTE`] and halts for ever with interrupts off. It burns no CPU and hears nothing.
    ByteThenIdle,
    /// Writes [`READY_BYTE`], then echoes each byte of serial input, and resets when it reads
    /// [`END_OF_TRANSMISSION`]. Halted between two inputs.
    Echo,
    /// Writes lines of 79 printable bytes and a newline, without end and as fast as it can.
    Flood,
    /// Writes [`READY_BYTE`] and resets on Ctrl+Alt+Del (`SendCtrlAltDel`). Halted until then.
    ResetOnCtrlAltDel,
    /// Writes [`READY_BYTE`] and is deaf to Ctrl+Alt+Del: only a signal ends its VMM.
    IgnoreCtrlAltDel,
    /// Writes this text and resets. It ends at the first NUL byte, if it holds one.
    Message(&'a str),
}

impl Guest<'_> {
    /// The guest as a file for `kernel_image_path`: a 64-bit little-endian static ELF for x86_64.
    pub fn elf(self) -> Vec<u8> {
        let mut image = Image::default();
        match self {
            Self::ByteThenReset => {
                image.write_ready_byte();
                image.reset();
            }
            Self::ByteThenIdle | Self::IgnoreCtrlAltDel => {
                image.code(&[0xfa]); // cli
                image.write_ready_byte();
                image.halt_for_ever();
            }
            Self::Echo => image.echo(),
            Self::Flood => image.flood(),
            Self::ResetOnCtrlAltDel => image.reset_on_ctrl_alt_del(),
            Self::Message(text) => image.message(text),
        }
        image.into_elf()
    }
}

/// The image in the making: code behind the headers, then whatever data it needs. All jumps are
/// relative and stay within one method, so that the pieces can be put together in any order.
struct Image {
    bytes: Vec<u8>,
}

impl Default for Image {
    fn default() -> Self {
        Self { bytes: vec![0; HEADERS] }
    }
}

impl Image {
    fn code(&mut self, instructions: &[u8]) {
        self.bytes.extend_from_slice(instructions);
    }

    /// The address that the next byte will have in the guest.
    fn here(&self) -> u32 {
        address(self.bytes.len())
    }

    fn write_ready_byte(&mut self) {
        self.code(&[0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
        self.code(&[0xb0, READY_BYTE]); //       mov al, 'S'
        self.code(&[0xee]); //                   out dx, al
    }

    fn reset(&mut self) {
        self.code(&[0xb0, 0xfe]); // mov al, 0xfe        pulse the CPU's reset line
        self.code(&[0xe6, 0x64]); // out 0x64, al
        self.halt_for_ever(); //     the exit is on its way; nothing is left to do
    }

    fn halt_for_ever(&mut self) {
        self.code(&[0xf4]); //       1: hlt
        self.code(&[0xeb, 0xfd]); // jmp 1b
    }

    fn flood(&mut self) {
        self.code(&[0x66, 0xba, 0xf8, 0x03]); //       mov dx, 0x3f8
        self.code(&[0xb3, b'!']); //                   mov bl, '!'
        self.code(&[0xb9, 79, 0x00, 0x00, 0x00]); // 1: mov ecx, 79      columns left
        self.code(&[0x88, 0xd8]); //                 2: mov al, bl
        self.code(&[0xee]); //                         out dx, al
        self.code(&[0xfe, 0xc3]); //                   inc bl
        self.code(&[0x80, 0xfb, 0x7f]); //             cmp bl, 0x7f      past '~'?
        self.code(&[0x75, 0x02]); //                   jne 3f
        self.code(&[0xb3, b'!']); //                   mov bl, '!'
        self.code(&[0xff, 0xc9]); //                 3: dec ecx
        self.code(&[0x75, 0xf0]); //                   jnz 2b
        self.code(&[0xb0, b'\n']); //                  mov al, '\n'
        self.code(&[0xee]); //                         out dx, al
        self.code(&[0xeb, 0xe6]); //                   jmp 1b
    }

    fn message(&mut self, text: &str) {
        let load_text = self.bytes.len();
        self.code(&[0xbe, 0x00, 0x00, 0x00, 0x00]); // mov esi, text     filled in below
        self.code(&[0x66, 0xba, 0xf8, 0x03]); //       mov dx, 0x3f8
        self.code(&[0xac]); //                       1: lodsb
        self.code(&[0x84, 0xc0]); //                   test al, al
        self.code(&[0x74, 0x03]); //                   jz 2f
        self.code(&[0xee]); //                         out dx, al
        self.code(&[0xeb, 0xf8]); //                   jmp 1b
        self.reset(); //                             2:
        let text_address = self.here().to_le_bytes();
        self.bytes[load_text + 1..load_text + 5].copy_from_slice(&text_address);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    fn echo(&mut self) {
        self.set_up_interrupts(SERIAL_IRQ);
        self.code(&[0x66, 0xba, 0xf9, 0x03]); //    mov dx, 0x3f9
        self.code(&[0xb0, 0x01]); //                mov al, 1       interrupt when data is received
        self.code(&[0xee]); //                      out dx, al
        self.write_ready_byte();
        self.code(&[0x66, 0xba, 0xfd, 0x03]); // 1: mov dx, 0x3fd
        self.code(&[0xec]); //                      in al, dx       line status
        self.code(&[0xa8, 0x01]); //                test al, 1      data ready?
        self.code(&[0x74, 0x0c]); //                jz 2f
        self.code(&[0x66, 0xba, 0xf8, 0x03]); //    mov dx, 0x3f8
        self.code(&[0xec]); //                      in al, dx
        self.code(&[0x3c, END_OF_TRANSMISSION]); // cmp al, 4
        self.code(&[0x74, 0x08]); //                je 3f
        self.code(&[0xee]); //                      out dx, al
        self.code(&[0xeb, 0xeb]); //                jmp 1b
        self.wait_for_interrupt(); //            2: (3 bytes)
        self.code(&[0xeb, 0xe6]); //                jmp 1b
        self.reset(); //                         3:
        self.add_interrupt_table();
    }

    fn reset_on_ctrl_alt_del(&mut self) {
        self.set_up_interrupts(KEYBOARD_IRQ);
        self.code(&[0xb0, 0x60]); //    mov al, 0x60    "write the command byte"
        self.code(&[0xe6, 0x64]); //    out 0x64, al
        self.code(&[0xb0, 0x01]); //    mov al, 1       interrupt when a key is there
        self.code(&[0xe6, 0x60]); //    out 0x60, al
        self.write_ready_byte();
        // Firecracker's keyboard knows no other keys than Ctrl+Alt+Del: any scan code is the chord.
        self.code(&[0xe4, 0x64]); // 1: in al, 0x64     controller status
        self.code(&[0xa8, 0x01]); //    test al, 1      a scan code waits?
        self.code(&[0x75, 0x05]); //    jnz 2f
        self.wait_for_interrupt(); //   (3 bytes)
        self.code(&[0xeb, 0xf5]); //    jmp 1b
        self.reset(); //             2:
        self.add_interrupt_table();
    }

    /// Stack, interrupt table and interrupt controller, with only line `irq` open. Interrupts are
    /// still off afterwards.
    fn set_up_interrupts(&mut self, irq: u8) {
        let stack_top = STACK_TOP.to_le_bytes();
        let idtr = address(IDTR).to_le_bytes();
        self.code(&[0xfa]); //                   cli
        self.code(&[0xbc]); //                   mov esp, STACK_TOP
        self.code(&stack_top);
        self.code(&[0x0f, 0x01, 0x1c, 0x25]); // lidt [IDTR]
        self.code(&idtr);
        self.code(&[0xb0, 0x11]); //             mov al, 0x11       start initialisation, four words
        self.code(&[0xe6, 0x20]); //             out 0x20, al
        self.code(&[0xb0, IRQ_BASE]); //         mov al, IRQ_BASE   line 0's vector
        self.code(&[0xe6, 0x21]); //             out 0x21, al
        self.code(&[0xb0, 0x04]); //             mov al, 4          the second controller is on line 2
        self.code(&[0xe6, 0x21]); //             out 0x21, al
        self.code(&[0xb0, 0x01]); //             mov al, 1          8086 mode, no automatic end
        self.code(&[0xe6, 0x21]); //             out 0x21, al
        self.code(&[0xb0, !(1 << irq)]); //      mov al, mask       all lines but ours
        self.code(&[0xe6, 0x21]); //             out 0x21, al
    }

    /// Halts until an interrupt has been handled. Nothing is lost between the look for input before
    /// and the halt: `sti` takes effect after the instruction that follows it.
    fn wait_for_interrupt(&mut self) {
        self.code(&[0xfb]); // sti
        self.code(&[0xf4]); // hlt
        self.code(&[0xfa]); // cli
    }

    /// Appends the table. All lines lead to the same handler, which does nothing but wake the CPU;
    /// an exception finds no gate, so that a bug ends the VMM instead of hanging it.
    fn add_interrupt_table(&mut self) {
        let handler = self.here().to_le_bytes();
        self.code(&[0x50]); //       push rax
        self.code(&[0xb0, 0x20]); // mov al, 0x20       end of interrupt
        self.code(&[0xe6, 0x20]); // out 0x20, al
        self.code(&[0x58]); //       pop rax
        self.code(&[0x48, 0xcf]); // iretq
        assert!(self.bytes.len() <= IDT, "the code of a guest with interrupts fits before its table");
        self.bytes.resize(IDT + usize::from(IRQ_BASE) * 16, 0);
        let mut gate = [0; 16];
        gate[0..2].copy_from_slice(&handler[0..2]);
        gate[2] = 0x08; // code selector
        gate[5] = 0x8e; // present, 64-bit interrupt gate
        gate[6..8].copy_from_slice(&handler[2..4]);
        for _line in 0..16 {
            self.bytes.extend_from_slice(&gate);
        }
        self.bytes.extend_from_slice(&(IDT_LEN as u16 - 1).to_le_bytes());
        self.bytes.extend_from_slice(&u64::from(address(IDT)).to_le_bytes());
    }

    /// Fills in the headers: one segment that holds the whole file, loaded at [`ORIGIN`].
    fn into_elf(self) -> Vec<u8> {
        let mut bytes = self.bytes;
        let len = (bytes.len() as u64).to_le_bytes();
        let origin = u64::from(ORIGIN).to_le_bytes();
        let entry = u64::from(address(HEADERS)).to_le_bytes();
        let headers: [(usize, &[u8]); 19] = [
            (0, b"\x7fELF"),
            (4, &[2, 1, 1]),                 // 64-bit, little-endian, ELF version 1
            (16, &2u16.to_le_bytes()),       // e_type: executable
            (18, &62u16.to_le_bytes()),      // e_machine: x86_64
            (20, &1u32.to_le_bytes()),       // e_version
            (24, &entry),                    // e_entry
            (32, &64u64.to_le_bytes()),      // e_phoff
            (52, &64u16.to_le_bytes()),      // e_ehsize
            (54, &56u16.to_le_bytes()),      // e_phentsize
            (56, &1u16.to_le_bytes()),       // e_phnum
            (58, &64u16.to_le_bytes()),      // e_shentsize
            (64, &1u32.to_le_bytes()),       // p_type: load
            (68, &7u32.to_le_bytes()),       // p_flags: read, write, execute
            (72, &0u64.to_le_bytes()),       // p_offset
            (80, &origin),                   // p_vaddr
            (88, &origin),                   // p_paddr
            (96, &len),                      // p_filesz
            (104, &len),                     // p_memsz
            (112, &0x1000u64.to_le_bytes()), // p_align
        ];
        for (offset, field) in headers {
            bytes[offset..offset + field.len()].copy_from_slice(field);
        }
        bytes
    }
}

/// The guest address of a place in the image, which is small: it always fits.
const fn address(offset: usize) -> u32 {
    ORIGIN + offset as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Guest<'static>; 7] = [
        Guest::ByteThenReset,
        Guest::ByteThenIdle,
        Guest::Echo,
        Guest::Flood,
        Guest::ResetOnCtrlAltDel,
        Guest::IgnoreCtrlAltDel,
        Guest::Message("hello\n"),
    ];

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn the_entry_point_lies_in_the_one_segment_which_is_the_whole_file() {
        for guest in ALL {
            let elf = guest.elf();
            assert_eq!(&elf[..7], b"\x7fELF\x02\x01\x01", "{guest:?}");
            let (entry, address, in_file, in_memory) =
                (u64_at(&elf, 24), u64_at(&elf, 88), u64_at(&elf, 96), u64_at(&elf, 104));
            assert_eq!(in_file, elf.len() as u64, "{guest:?}");
            assert_eq!(in_memory, in_file, "{guest:?}");
            assert!(entry > address && entry < address + in_file, "{guest:?}");
            assert!(address + in_memory < MIN_MEM_MIB << 20, "{guest:?}");
        }
    }

    #[test]
    fn a_message_is_found_at_the_address_that_the_code_loads() {
        let elf = Guest::Message("hello\n").elf();
        let loaded = u32::from_le_bytes(elf[HEADERS + 1..HEADERS + 5].try_into().unwrap());
        assert_eq!(&elf[(loaded - ORIGIN) as usize..], b"hello\n\0");
    }

    #[test]
    fn the_interrupt_gate_leads_to_the_handler() {
        let elf = Guest::Echo.elf();
        let gate = IDT + usize::from(IRQ_BASE + SERIAL_IRQ) * 16;
        let target = [elf[gate], elf[gate + 1], elf[gate + 6], elf[gate + 7]];
        let handler = (u32::from_le_bytes(target) - ORIGIN) as usize;
        assert_eq!(&elf[handler..handler + 3], &[0x50, 0xb0, 0x20], "push rax; mov al, 0x20");
        assert_eq!(u64_at(&elf, IDTR + 2), u64::from(address(IDT)));
    }
}
