"""Tables of trained architectures: digits-nasbench, which comes with the library, NAS-Bench-101 and NATS-Bench."""
