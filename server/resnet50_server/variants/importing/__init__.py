"""Import of checkpoints that training code wrote: recognise, convert, write a variant."""
