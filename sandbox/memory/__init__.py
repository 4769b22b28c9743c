"""Host memory: mappings, pages, and what the kernel knows of them."""
