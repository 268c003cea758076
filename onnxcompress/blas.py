"""One BLAS thread for the work of a verb."""

from threadpoolctl import threadpool_limits

one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")
"""Sums in the same order on any number of cores, for the same bytes; these matrices are too small for two."""
