"""Which rows are learnt from: whom the teacher is asked about, and which of a batch count. One file a strategy."""
