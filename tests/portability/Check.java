import java.nio.file.*;
import java.security.*;
import java.util.*;

/** Uses native libraries of the runtime, and programs of the place. */
public class Check {
    public static void main(String[] args) throws Exception {
        System.out.println("home " + System.getProperty("java.home"));
        byte[] digest = MessageDigest.getInstance("SHA-256").digest("kitbag".getBytes());
        System.out.println("digest " + HexFormat.of().formatHex(digest));
        System.out.println("random " + (SecureRandom.getInstance("NativePRNGNonBlocking").nextLong() != 0));
        System.out.println("sum " + new Random(1).ints(100).parallel().map(number -> 1).sum());
        if (Files.exists(Path.of("/bin/sh"))) {
            Process shell = new ProcessBuilder("/bin/sh", "-c", "echo the shell of the place; env").start();
            System.out.print(new String(shell.getInputStream().readAllBytes()));
        }
        System.out.println("waiting");
        System.in.read();
    }
}
