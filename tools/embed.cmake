# cmake -DFROM=file -DTO=file.c -DNAME=symbol -P embed.cmake: a file as a C array, so that the program stands alone.
file(READ ${FROM} hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "((0x..,){32})" "\\1\n" bytes "${bytes}")
file(WRITE ${TO} "// Made from ${FROM} by tools/embed.cmake.\n#include <stddef.h>\nextern const char ${NAME}[];\nextern const size_t ${NAME}_bytes;\nconst char ${NAME}[] = {\n${bytes}0};\nconst size_t ${NAME}_bytes = sizeof ${NAME} - 1;\n")
