//! Set up, build, show, test and measure iwf.
fn main() {}
