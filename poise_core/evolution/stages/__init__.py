"""One file a stage, in the order of a generation: select, propose, implement, verify, train, evaluate, repair, reflect."""
