"""Everything that connects to another machine: whom it may be, what is fetched whole, what is crawled."""
