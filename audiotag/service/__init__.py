"""HTTP and the page: one checkpoint served to many clients. Needs the extra ``serve``; nothing else imports it."""
