"""The scheduled run: `cil retrain`. New videos in, a champion that is no worse out.

`command` is the entry: fingerprint, lock, skip, warm start, train, register, gate, promote. `night`
is what one fingerprint leaves on disk, so that a crash at any point is completed by the next run.
"""
