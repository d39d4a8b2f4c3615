# Install rules: the program, the library, its headers and the CMake package.
