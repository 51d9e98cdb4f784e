"""From packed datasets to a mix."""
