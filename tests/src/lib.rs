//! The lab and the harness of the integration suites.
