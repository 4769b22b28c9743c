"""What tenants share of the server itself: places, threads, memory and processor time, each in a bounded part."""
