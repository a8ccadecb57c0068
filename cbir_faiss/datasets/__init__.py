"""Published data sets: fetched from where they are published, checked, and laid out as sources read them."""
