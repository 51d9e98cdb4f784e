"""Changes what is there, and takes it out: retry, verify, repair, clean, adopt, pin, export."""
