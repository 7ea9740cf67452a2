"""Pages: a report that is one file, and the demo that writes one."""
