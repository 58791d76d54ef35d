"""What tests share: waiting for a condition, calls in the background, the server of this run."""

from tests.support.cluster import Cluster, Database
from tests.support.waiting import Background, wait_for_lock, wait_until

__all__ = ["Background", "Cluster", "Database", "wait_for_lock", "wait_until"]
