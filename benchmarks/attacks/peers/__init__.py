"""Other libraries, each behind ``make(network, setting)``: a run, or None where the library lacks the attack."""
