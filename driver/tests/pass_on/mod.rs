//! What a function that stands before another one, to count, refuse or tell something, passes on as it is.

/// The named methods of `Function`, each passed on to a field that holds one.
macro_rules! pass_on {
    ($inner:ident: $($method:ident),+) => { $(crate::pass_on::pass_on! { @$method $inner })+ };
    (@name $inner:ident) => {
        fn name(&self) -> &str {
            self.$inner.name()
        }
    };
    (@domain $inner:ident) => {
        fn domain(&self) -> std::sync::Arc<dyn kiovec::memory::Domain> {
            self.$inner.domain()
        }
    };
    (@config_read $inner:ident) => {
        fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), kiovec::Error> {
            self.$inner.config_read(offset, data)
        }
    };
    (@config_write $inner:ident) => {
        fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), kiovec::Error> {
            self.$inner.config_write(offset, data)
        }
    };
    (@read32 $inner:ident) => {
        fn read32(&self, offset: u64) -> Result<u32, kiovec::Error> {
            self.$inner.read32(offset)
        }
    };
    (@read64 $inner:ident) => {
        fn read64(&self, offset: u64) -> Result<u64, kiovec::Error> {
            self.$inner.read64(offset)
        }
    };
    (@write32 $inner:ident) => {
        fn write32(&self, offset: u64, value: u32) -> Result<(), kiovec::Error> {
            self.$inner.write32(offset, value)
        }
    };
    (@write64 $inner:ident) => {
        fn write64(&self, offset: u64, value: u64) -> Result<(), kiovec::Error> {
            self.$inner.write64(offset, value)
        }
    };
    (@doorbells $inner:ident) => {
        fn doorbells(&self, len: u64) -> Result<kiovec::pci::DoorbellPage, kiovec::Error> {
            self.$inner.doorbells(len)
        }
    };
    (@reset $inner:ident) => {
        fn reset(&self) -> Result<(), kiovec::Error> {
            self.$inner.reset()
        }
    };
    (@clock $inner:ident) => {
        fn clock(&self) -> kiovec::pci::Clock {
            self.$inner.clock()
        }
    };
    (@pause $inner:ident) => {
        fn pause(&self) {
            self.$inner.pause();
        }
    };
}
pub(crate) use pass_on;
