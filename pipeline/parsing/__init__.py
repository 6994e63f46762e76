"""Human parsers: images in, soft label maps out; and how labels become the four parts."""
