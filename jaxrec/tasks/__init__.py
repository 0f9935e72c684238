"""What is learnt and how it is measured, one file each; `Default` is that of most experiments."""

from jaxrec.tasks.next_item import Config as Default

__all__ = ['Default']
