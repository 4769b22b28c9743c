"""Python in WebAssembly: images, instances, and sessions within one process."""
