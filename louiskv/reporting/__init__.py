"""One page of HTML from files of results; needs the extra: pip install 'louiskv[report]'."""
