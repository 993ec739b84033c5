# Foreign declarations: the dynamic loader.
cdef extern from "<dlfcn.h>" nogil:
    void *dlopen(const char *name, int flags)
    void *dlsym(void *handle, const char *symbol)
    int dlclose(void *handle)
    enum:
        RTLD_NOW
        RTLD_LOCAL
