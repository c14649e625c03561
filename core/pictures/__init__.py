"""Pictures that are to be looked at: labelled sheets of them."""
