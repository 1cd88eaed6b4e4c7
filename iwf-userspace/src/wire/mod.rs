//! Bytes to meaningful representations and back; no state, no clock.

pub mod soap;
