"""Which candidates become parents: the acquisition, its terms, control arms, reference sets, and when to stop."""
