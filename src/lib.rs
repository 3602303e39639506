//! `vmsnap`: a snapshot agent for KVM hypervisors.
