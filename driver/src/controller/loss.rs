//! How a controller is lost, and what the function tells of that.
//!
//! Knows what a notice of the function's leads to, and what is said of a controller that is no more; must not
//! know how a reset goes, nor what becomes of requests.

use super::{Admin, Controller, ControllerEvent, Era, registers};
use crate::pci::Notice;
use crate::{Error, Result};

/// Why a controller is given up for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// Resets have not helped.
    GivenUp,
    /// No register answers.
    Gone,
    /// The kernel wants the function back.
    ReturnRequested,
}

impl Controller {
    /// Looks whether anything was told of the function, and does what follows from it.
    pub(super) fn heed(&self, admin: &mut Admin) {
        match self.function.notice() {
            None => {}
            Some(_) if matches!(self.era(), Era::Lost { .. }) => {}
            Some(Notice::Gone) => self.lose(&mut admin.course, Loss::Gone),
            Some(Notice::ReturnRequested) => {
                self.inbox.put(ControllerEvent::ReturnRequested);
                // The kernel asks for it as well when it was pulled out.
                let loss = if self.has_vanished() { Loss::Gone } else { Loss::ReturnRequested };
                self.lose(&mut admin.course, loss);
            }
            Some(Notice::BusError) => {
                self.inbox.put(ControllerEvent::BusError);
                match self.has_vanished() {
                    true => self.lose(&mut admin.course, Loss::Gone),
                    false => self.begin(admin),
                }
            }
        }
    }

    fn has_vanished(&self) -> bool {
        matches!(registers::check(&*self.function), Err(Error::Gone { .. } | Error::Disconnected { .. }))
    }

    /// Fails if the controller was lost, with the cause.
    pub(super) fn outlived(&self) -> Result<()> {
        let device = || self.name().into();
        match self.loss.get() {
            None => Ok(()),
            Some(Loss::GivenUp) => Err(Error::Lost { device: device() }),
            Some(Loss::Gone) => Err(self.function.gone()),
            Some(Loss::ReturnRequested) => Err(Error::ReturnRequested { device: device() }),
        }
    }
}
