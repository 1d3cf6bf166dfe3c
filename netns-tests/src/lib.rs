//! What the namespace tests share: running a lab and asserting the path that it found.
