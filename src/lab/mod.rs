//! The lab: an internet, NATs and nodes in network namespaces of this machine.
