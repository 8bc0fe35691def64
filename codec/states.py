"""The states of trellis-coded quantisation, as entropy coder and quantiser both know them; see trellis.py."""

import numpy as np

NEXT = np.array([[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]], np.uint8)  # by state and parity
STATES = len(NEXT)
FIRST_BIN = 14  # tables from this one on are those of even states; symbols of lower ones have no part in the trellis
ODD_STATES = 64  # what is added to a table's number in an odd state

BEFORE = np.array([[s for s in range(STATES) if t in NEXT[s]] for t in range(STATES)], np.uint8)  # two lead to each
PARITY = np.array([[int(NEXT[s][1] == t) for s in BEFORE[t]] for t in range(STATES)], np.uint8)  # of what leads there
BRANCH = (2 * (BEFORE & 1) + PARITY).astype(np.uint8)  # which quantiser and parity that is
