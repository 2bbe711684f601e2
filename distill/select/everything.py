"""Every row of the pool: the teacher is asked about all, and all are learnt from."""

from typing import Literal

from edgestill.distill.select.selection import Selection


class Everything(Selection):
    """No choice at all."""

    strategy: Literal["all"] = "all"
