// Runs a program of Gerrit (Init, Daemon, Reindex) from the jars that Maven Central has: its war is not there.
import com.google.gerrit.pgm.util.AbstractProgram;
import java.util.Arrays;

public class RunGerrit {
  public static void main(String[] arguments) throws Exception {
    AbstractProgram program =
        (AbstractProgram) Class.forName("com.google.gerrit.pgm." + arguments[0]).getDeclaredConstructor().newInstance();
    int code = program.main(Arrays.copyOfRange(arguments, 1, arguments.length));
    if (code != 0 || !arguments[0].equals("Daemon")) {
      System.exit(code);
    }
  }
}
