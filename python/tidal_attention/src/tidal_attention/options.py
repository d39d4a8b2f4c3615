"""What a user may choose."""

from dataclasses import dataclass, fields

from tidal_attention.errors import Refused


@dataclass(frozen=True)
class Options:
    """How sparse decoding is.

    budget: most positions that a KV head's query heads attend to, the block still filling (up to 63) on top; contexts up
        to it get full attention. 1 to 2^24.
    sketch_bits: bits of a key's element in its sketch: 1, 2 or 4.
    threads: of the CPU; 0: as many as torch has.
    """

    budget: int = 256
    sketch_bits: int = 2
    threads: int = 0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int:
                raise Refused(f"{field.name}: {value!r}, expected a whole number")
        if not 1 <= self.budget <= 1 << 24:
            raise Refused(f"budget: {self.budget}, expected 1 to {1 << 24}")
        if self.sketch_bits not in (1, 2, 4):
            raise Refused(f"sketch_bits: {self.sketch_bits}, expected 1, 2 or 4")
        if not 0 <= self.threads <= 1024:
            raise Refused(f"threads: {self.threads}, expected 0 to 1024")

    @classmethod
    def of(cls, given):
        """From a dictionary, as command lines have it; keys that it does not know are refused."""
        known = {field.name for field in fields(cls)}
        for key in given:
            if key not in known:
                raise Refused(f"{key}: not known, expected one of {', '.join(sorted(known))}")
        return cls(**given)
