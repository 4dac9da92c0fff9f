"""Topic fingerprints beside gensim, scikit-learn, tomotopy and faiss: quality, CPU time and memory."""
