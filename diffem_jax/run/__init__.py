"""One run on the host: rounds of E-step and M-step, and what is done with their results."""
