"""People judge two sets of pictures blind: what is asked, the page, and what the answers say."""
