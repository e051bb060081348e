"""The paper's pipeline at full scale: real problems with tests, language models as humans."""
