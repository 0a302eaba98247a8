"""What is said of a store: checksummed lines, their replay, snapshots of them."""
