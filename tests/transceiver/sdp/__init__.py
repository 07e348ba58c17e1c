"""SDP: offers of real stacks and of nobody, and what is answered."""
