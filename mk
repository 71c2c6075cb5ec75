gcc -O2 -fopenmp -I/work/w-speed/src step.c /tmp/ref/libgang.a -ljansson -lyaml -lpcre2-8 -lutf8proc -lhwloc -lxxhash -lssl -lcrypto -ldnnl -lgomp -lpthread -lm -o step_ref
gcc -O2 -fopenmp -I/work/w-speed/src step.c /work/w-speed/build/libgang.a -ljansson -lyaml -lpcre2-8 -lutf8proc -lhwloc -lxxhash -lssl -lcrypto -ldnnl -lgomp -lpthread -lm -o step_new
